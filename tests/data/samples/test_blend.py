import numpy as np
import pytest

from data.samples.blend import FINEST, Blend, shares

MTNLG = [14336, 19336, 5689, 2897, 4771, 873, 1007, 208, 9446, 1359, 1588, 13017, 15652, 8962, 859]


def test_a_small_blend_by_hand() -> None:
    # Two of the first for one of the second: due by 1.5 and 3, and by 3. Of equals the earlier part comes first.
    parts, indices = Blend([2, 1]).place(np.arange(7))
    assert parts.tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert indices.tolist() == [0, 1, 0, 2, 3, 1, 4]
    assert [Blend([2, 1]).counts(position) for position in (0, 2, 3, 7)] == [[0, 0], [2, 0], [2, 1], [5, 2]]


@pytest.mark.parametrize("parts", [[1], [1, 1], [5, 3, 2], [1, 1, 1, 1, 997], [997, 1, 1, 1, 1], [7] * 16, MTNLG])
def test_every_prefix_is_exact_to_within_one_sample(parts: list[int]) -> None:
    period = sum(parts)
    found, indices = Blend(parts).place(np.arange(2 * period))
    for part, share in enumerate(parts):
        given = np.cumsum(found == part)
        # In whole numbers: |given - k * share / period| < 1 after each k samples.
        assert (np.abs(given * period - np.arange(1, 2 * period + 1) * share) < period).all()
        assert np.array_equal(indices[found == part], np.arange(2 * share))
    for position in (0, 1, period // 3, period - 1, period, 2 * period - 1):
        expected = np.bincount(found[:position], minlength=len(parts))
        assert Blend(parts).counts(position) == expected.tolist()


def test_a_position_does_not_depend_on_what_is_asked_with_it() -> None:
    blend = Blend(MTNLG)
    whole = np.stack(blend.place(np.arange(250_000)))
    assert np.array_equal(whole[:, [3, 249_999, 100_000]], np.stack(blend.place(np.array([3, 249_999, 100_000]))))


def test_weights_become_whole_shares() -> None:
    assert shares([0.7, 0.3]) == [7, 3]
    assert shares([1 / 3] * 3) == [1, 1, 1]
    assert shares([100e9, 170e9]) == [10, 17]
    assert shares([part / 100_000 for part in MTNLG]) == MTNLG
    assert shares([1.2e-6, 1.0]) == [1, FINEST - 1]
    with pytest.raises(ValueError, match=r"weighs 1e-09 of the whole, .* leave it out"):
        shares([1e-9, 1.0])
    assert shares([2**0.5, 3**0.5, 5**0.5]) == [262_751, 321_803, 415_446]  # 262751.07, 321803.02, 415445.91
