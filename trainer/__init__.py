"""Training: interactions in, a sealed bundle out.

Data flow, one module a step::

    tables → interactions → spill → examples        reading, grouping, features   (prepare)
    model, loss, optimizer → loop → export, parity  one repetition                (repetition)
    collect                                          merge rule, bundle

Repetitions share the prepared data and nothing else. What each step finished lies in a work
directory beside the bundle (:mod:`trainer.workspace`), so a run that was killed continues.
"""
