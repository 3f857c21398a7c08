from stability.data.phonemes import BLANK, PHONEMES, SILENCE


def test_phonemes_are_the_classes_of_the_public_checkpoints() -> None:
    first = "BLANK AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH"
    second = "K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
    assert [*PHONEMES] == [*first.split(), *second.split(), " | "]
    assert (PHONEMES[BLANK], PHONEMES[SILENCE]) == ("BLANK", " | ")
