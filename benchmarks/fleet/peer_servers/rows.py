"""What the peers' servers share: a session, and rows as bytes. Runs in their environments."""

import numpy as np
import onnxruntime as ort


def load(path):
    """A session as our shards make it: one thread that does not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session, rows):
    """Answers to rows of indices (int32) and values (float32), each row's bytes together."""
    lengths = [len(row) // 8 for row in rows]
    shape = (len(rows), max([1, *lengths]))
    indices, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        indices[i, :length] = np.frombuffer(row, np.int32, length)
        values[i, :length] = np.frombuffer(row, np.float32, length, 4 * length)
    (answer,) = session.run(["log_probabilities"], {"indices": indices, "values": values})
    return [row.tobytes() for row in answer]
