"""stub until branch zero3 is merged"""


def whole_weights(model, bucket_bytes=2**30, want=True):
    yield from model.state_dict().items()
