"""Claims jobs of procrastinate by its own library, as many tasks at once as are told, each claim a transaction of its own.

Says `ready` once it is connected, begins when it is told a line, and prints the ids that it claimed and how long that took.
"""

import asyncio
import json
import logging
import sys
import time

import procrastinate


# It warns of an app that is made in the main module, which matters to those alone who run tasks.
logging.getLogger("procrastinate").setLevel(logging.ERROR)


async def claim(manager, worker, claimed):
    while (job := await manager.fetch_job(None, worker)) is not None:
        claimed.append(job.id)


async def main(url, tasks, connections):
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=connections, max_size=connections, timeout=600)
    app = procrastinate.App(connector=connector)
    async with app.open_async():
        worker = await app.job_manager.register_worker()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        claimed, begun = [], time.monotonic()
        await asyncio.gather(*(claim(app.job_manager, worker, claimed) for _ in range(tasks)))
        seconds = time.monotonic() - begun
    json.dump({"seconds": seconds, "claimed": claimed}, sys.stdout)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
