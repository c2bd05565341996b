"""A federation on this machine: a server and three parties, each a process of its own that could be anywhere.

python examples/federate.py
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

SHOAL = [sys.executable, "-m", "shoal", "federate"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps of all parties together")
    parser.add_argument("--updates", type=int, default=400, help="local updates between two messages of a party")
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/federate"))
    given = parser.parse_args()

    # Poles of three lengths; the first layers are everybody's, the last one is each party's own (form A).
    server = [*SHOAL, "server", "collab_a2c", "--env", "owners:CartPole-lengths", "--parties", "3"]
    server += ["--federation.local-updates", str(given.updates), "--federation.exchange", "delta"]
    server += ["--steps", str(given.steps), "--port", str(given.port), "--out", str(given.out / "server")]
    processes = [subprocess.Popen(server)]
    invitations = given.out / "server" / "flower" / "parties"
    while len(list(invitations.glob("*/federation.json"))) < 3 and processes[0].poll() is None:
        time.sleep(0.5)

    for number in range(3):  # on other machines: the same, with --keys
        party = [*SHOAL, "party", "--server", f"127.0.0.1:{given.port}", "--out", str(given.out / f"party-{number}")]
        processes.append(subprocess.Popen([*party, "--env", f"owners:CartPole-lengths/{number}", "--quiet"]))
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()
    if any(codes):
        sys.exit(f"exit codes {codes}")

    federation = json.loads((given.out / "server" / "summary.json").read_text())["federation"]
    print(f"{federation['rounds']} rounds, {federation['bytes_up']} bytes up, {federation['bytes_down']} down")
    for number in range(3):  # what a party reached is known to the party alone
        summary = json.loads((given.out / f"party-{number}" / "summary.json").read_text())
        print(f"party {number}: {summary['env_steps']} steps, greedy return {summary['eval_return_mean']}")


if __name__ == "__main__":
    main()
