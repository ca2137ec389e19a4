"""A repetition as a worker of mosec, with its dynamic batching in front."""

import os

import rows
from mosec import Server, Worker

MAX_BATCH_SIZE = int(os.environ["PEER_MAX_BATCH_SIZE"])
MAX_WAIT_MS = int(os.environ["PEER_MAX_WAIT_MS"])


class Repetition(Worker):
    """Takes and gives raw bytes."""

    resp_mime_type = "application/octet-stream"

    def __init__(self):
        super().__init__()
        self._session = rows.load(os.environ["PEER_MODEL"])

    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        return rows.run(self._session, data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Repetition, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_WAIT_MS
    )
    server.run()
