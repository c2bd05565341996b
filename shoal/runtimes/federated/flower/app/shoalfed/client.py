"""What a SuperNode runs for every message: hand the bytes to the party's socket, hand back what it answers.

This and `server` are all the code that a federation sends to its parties. Nothing of the party is in this process, and
nothing is ever unpickled.
"""

import multiprocessing.connection
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

LIMIT = 1 << 28  # bytes of an answer
PATIENCE = 120.0  # seconds in which a party that is being restarted opens its socket again

app = ClientApp()


def ask(path: str, body: bytes) -> bytes:
    """Send bytes to the party, and wait for its answer.

    Raises:
        OSError: Nobody listens.
        EOFError: The party was lost while it worked.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            party = multiprocessing.connection.Client(path, "AF_UNIX")
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
    with party:
        party.send_bytes(body)
        return party.recv_bytes(LIMIT)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One job; the answer to a failure is empty, and never the text of an exception."""
    try:
        body = ask(str(context.node_config["socket"]), message.content["job"]["body"])
    except Exception:  # noqa: BLE001
        body = b""
    return Message(RecordDict({"job": ConfigRecord({"body": body})}), reply_to=message)
