"""A call whose answer may never end: asked for as any other, read by who has asked."""

from s3mount.s3.calls import Calls, Request
from s3mount.s3.connection import Broken, Connection
from s3mount.s3.faults import refusal_of
from s3mount.s3.http import Answer, Head, read_final_head, read_text


class StreamingCalls(Calls):
    """Makes calls to one endpoint with one identity, also such that never end."""

    async def ask_for_stream(self, request: Request) -> tuple[Connection, Head]:
        """Send a request whose answer has no end, on a connection beside the others.

        The body is the caller's to read, and the connection to close.  Raises `StoreError`,
        and `Broken` after an attempt that was not answered.
        """
        operation = self.begin()
        while True:
            if self._credentials is not None:
                operation.credentials = self._credentials.current()
                operation.credentials = operation.credentials or await self._credentials.refresh(
                    None
                )
            connection = await self._route.pool.dial()
            try:
                head = self._render(request, operation.credentials, asks=False)
                if not await connection.send(head, ()):
                    raise Broken("the connection was closed")
                answer = await read_final_head(connection, request.method)
                if answer.status < 300:
                    self._count(request.kind, connection)
                    return connection, answer
                text = await read_text(connection, answer)
            except BaseException:
                connection.close()
                raise
            connection.close()
            whole = Answer(answer.status, answer.headers, text)
            if not await self._repair(operation, refusal_of(whole), whole):
                raise refusal_of(whole).error(request.what)
