"""The least that a Python gateway can be: uvicorn takes a request, aiohttp sends it on, bytes come back.

    python benchmarks/byte_pump.py PORT UPSTREAM_URL

No keys, no metrics, no routes: what is above it is what features cost, what it costs itself is libraries'.
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn


class Pump:
    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self.session is None:
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        url = self.upstream + scope["path"]
        headers = {"Content-Type": "application/json"}
        async with self.session.request(scope["method"], url, data=body, headers=headers) as answer:
            kind = answer.headers.get("Content-Type", "").encode()
            start = {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(b"content-type", kind)],
            }
            await send(start)
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        Pump(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=2048,
    )
