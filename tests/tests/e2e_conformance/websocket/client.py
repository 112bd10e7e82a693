"""Runs cases of the Autobahn suite against a server.

In: its address, how many at once, cases to run, `--`, cases to leave. Out: one line of JSON, `{case: [verdict, verdict of the close]}`.
"""

import asyncio
import json
import sys

from kosoku import FailureError, run_fuzzingclient


async def main():
    address, at_once, *cases = sys.argv[1:]
    split = cases.index("--")
    try:
        results = await run_fuzzingclient(address, cases[:split], cases[split + 1 :], concurrency=int(at_once))
    except FailureError as failure:
        results = failure.results
    print(json.dumps({result.case_id: [result.behavior.value, result.behavior_close.value] for result in results}))


asyncio.run(main())
