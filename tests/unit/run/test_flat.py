from grpo.run.flat import bound, differences, flat

CONFIG = {"seed": 1, "train": {"learning_rate": 0.1}, "hardware": {"name": "cpu", "overlap": False}, "resume": "auto"}


def test_settings_by_their_full_names() -> None:
    assert flat(CONFIG) == {
        "seed": 1,
        "train.learning_rate": 0.1,
        "hardware.name": "cpu",
        "hardware.overlap": False,
        "resume": "auto",
    }


def test_what_numbers_depend_on() -> None:
    assert bound(CONFIG) == {"seed": 1, "train.learning_rate": 0.1, "hardware.overlap": False}
    assert bound(CONFIG, also_free=("train",)) == {"seed": 1, "hardware.overlap": False}


def test_differences_are_told_in_order_and_say_what_is_absent() -> None:
    now = {"seed": 2, "train": {"momentum": 0.9}, "hardware": {"name": "mps", "overlap": True}, "resume": "never"}
    assert differences(CONFIG, CONFIG) == []
    assert differences(CONFIG, now) == [
        "hardware.overlap=False there, True here",
        "seed=1 there, 2 here",
        "train.learning_rate=0.1 there, (absent) here",
        "train.momentum=(absent) there, 0.9 here",
    ]
    assert differences(CONFIG, now, also_free=("train", "seed")) == ["hardware.overlap=False there, True here"]
