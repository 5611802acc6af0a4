import pytest
from tests.mount import test_model as tm
@pytest.mark.parametrize("server", ("minio",))
@pytest.mark.parametrize("seed", range(12, 20))
def test_soak(server_of, make_bucket, mount, tmp_path, server, seed, monkeypatch):
    monkeypatch.setattr(tm, "STEPS", 5000)
    tm.test_random_operations_as_on_a_disk(server_of, make_bucket, mount, tmp_path, server, seed)
