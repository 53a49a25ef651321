"""What the matrix asks of every client, done by python-socketio.

    matrix_client.py URL TOKEN TRANSPORTS MESSAGE...

TRANSPORTS is `polling`, `websocket`, or `default` for polling and the upgrade. Enters `/` and
`/chat`, joins the room, sends each message and waits for somebody's answer to it; comes again with
a bad token. Prints a line of JSON for each step.
"""

import json
import queue
import sys

import socketio

ROOM = "algebra"
WAIT = 5

url, token, transports, *messages = sys.argv[1:]
transports = None if transports == "default" else [transports]


def step(name, **told):
    print(json.dumps({"step": name, **told}), flush=True)


def hears(client, event, namespace="/"):
    """What will be heard of an event, to be asked for one by one."""
    heard = queue.Queue()
    # A durable event ends in an offset.
    client.on(event, lambda payload, *offset: heard.put(payload), namespace=namespace)
    return lambda: heard.get(timeout=WAIT)


def new_client():
    return socketio.Client(reconnection=False)


def connect(client, token, namespaces, **waiting):
    auth = {"token": token}
    client.connect(url, auth=auth, transports=transports, namespaces=namespaces, **waiting)


client = new_client()
joined = hears(client, "room-joined")
message = hears(client, "receive-message")
chat_message = hears(client, "receive-message", "/chat")

connect(client, token, ["/", "/chat"], wait_timeout=WAIT)
step("connected", transport=client.transport())

client.emit("join-room", {"roomId": ROOM})
step("joined", heard=joined())

for text in messages:
    said = {"roomId": ROOM, "message": text, "clientMsgId": text[:40]}
    answer = client.call("send-message", said, timeout=WAIT)
    step("said", answer=answer, heard=message())
    step("answered", heard=message())

answer = client.call("join-room", {"roomId": ROOM}, namespace="/chat", timeout=WAIT)
step("joined in /chat", answer=answer)
said = {"roomId": ROOM, "message": messages[0]}
answer = client.call("send-message", said, namespace="/chat", timeout=WAIT)
step("said in /chat", answer=answer, heard=[chat_message(), message()])

stranger = new_client()
refusal = hears(stranger, "connect_error")
connect(stranger, "garbage", ["/"], wait=False)
step("refused", heard=refusal())

# Ends without a `disconnect`: over polling that may lose its last packet and wait for a ping.
