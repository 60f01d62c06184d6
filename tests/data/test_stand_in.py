"""What stands in for a data set that is absent, and what does not."""

import pytest

from bitsmith.data import stand_in
from bitsmith.data.stand_in import load_or_stand_in
from bitsmith.errors import DataError, UnknownNameError


@pytest.fixture
def absent(monkeypatch):
    """Every data set but digits is known and cannot be read."""
    loaded = stand_in.load_dataset

    def load(name):
        if name == "digits":
            return loaded(name)

        def split(self, which):
            raise DataError(f"data set {name!r}: none; set BITSMITH_DATA")

        return type("Missing", (), {"split": split})()

    monkeypatch.setattr(stand_in, "load_dataset", load)


def test_what_is_there_is_taken():
    assert load_or_stand_in("digits", "mnist")[1] == []


@pytest.mark.usefixtures("absent")
def test_the_usual_is_replaced_and_the_reason_said():
    found, reasons = load_or_stand_in("mnist", "mnist")
    assert found.name == "digits"
    assert reasons == [
        "mnist: data set 'mnist': none; set BITSMITH_DATA; everything here is of digits"
    ]


@pytest.mark.usefixtures("absent")
def test_what_was_asked_for_is_not_replaced():
    with pytest.raises(DataError, match="BITSMITH_DATA"):
        load_or_stand_in("cifar10", "mnist")


def test_an_unknown_name_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        load_or_stand_in("mnits", "mnist")
