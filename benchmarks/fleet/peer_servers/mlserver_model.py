"""A repetition as a model of MLServer, with its adaptive batching in front."""

import rows
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


class Repetition(MLModel):
    """Takes and gives BYTES tensors, which it need not turn into lists of numbers."""

    async def load(self):
        self._session = rows.load(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        answers = rows.run(self._session, list(payload.inputs[0].data))
        output = ResponseOutput(
            name="log_probabilities", datatype="BYTES", shape=[len(answers)], data=answers
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
