"""Numbers as people read them."""


def quantity(number: float) -> str:
    """A count with its unit: 25.56 M, 4.089 G."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            scaled = number / factor
            return f"{scaled:.{3 if unit == 'G' else 2 if scaled < 100 else 1}f} {unit}"
    return f"{number:.0f}"


def per_second(rate: float | None) -> str:
    """A rate: 9.1, 2,350; a dash where it was not measured."""
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3:07 min or 2:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def spread(mean: float, deviation: float | None) -> str:
    """A mean with its deviation, where there is one."""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def megabytes(number: float) -> str:
    """A number of bytes: 114.4 MB."""
    return f"{number / 1e6:,.1f} MB"
