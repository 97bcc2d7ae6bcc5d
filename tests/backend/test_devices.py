from keras_igpt.backend.devices import device_memory


def test_the_memory_of_this_machine_is_found():
    found = device_memory()
    assert found is None or 2**28 < found < 2**50
