"""Seeds, and the random numbers that they give: a counter-based generator.

The number that samples token ``t`` of a completion is a hash of the completion's seed and ``t`` alone: a completion is
the same whoever shares its batch, and wherever a run is resumed.
"""

MASK64 = (1 << 64) - 1


def mix64(value: int) -> int:
    """SplitMix64's finalizer (Steele et al. 2014): 64 well-mixed bits of a 64-bit number."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def derive_seed(*parts: int) -> int:
    """One seed (below 2**31) out of several numbers, such as (seed, step, prompt, sample); order matters."""
    state = 0
    for part in parts:
        state = mix64(state ^ mix64(part & MASK64))
    return state >> 33


def uniform(seed: int, counter: int) -> float:
    """The ``counter``-th number in [0, 1) of a seed's stream, a multiple of 2**-32."""
    return (mix64(mix64(seed) + counter) >> 32) / 2**32
