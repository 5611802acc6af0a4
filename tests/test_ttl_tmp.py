import time,os
def test_x(mount, bucket, s3):
    m = mount(bucket)
    d=m.path/"d"; d.mkdir(); (d/"a").write_text("x"); print(os.listdir(d))
    s3.put_object(Bucket=bucket.name, Key="d/new", Body=b"1")
    t=time.time()
    while "new" not in os.listdir(d) and time.time()-t<25: time.sleep(.1)
    print("appeared after", time.time()-t)
    m.umount()
    print([l for l in m.log.splitlines() if "ListObj" in l or "list" in l.lower()][:20])
