"""Standardised uptake value by body weight, from what a PET header says of dose, decay and times.

    SUVbw = activity concentration (Bq/ml) * weight (g) / (dose (Bq) * 2 ** (-t / half life))

with t from injection to the moment to which the scanner corrected the decay (QIBA, "SUV Vendor-neutral Pseudo-Code").
Nothing is guessed: what is missing is refused by its tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from oncofed_client.imaging.headers import Header
from oncofed_client.imaging.settings import Limits

__all__ = ["suv_factor", "suv_factors"]

_HEAVIEST = 635.0
"""kg; no person was heavier, so that a weight in grams is noticed."""
_LEAST_DOSE = 1e5
"""Bq; a dose below is a hundredth of any that is given, so that one in MBq is noticed."""
_HALF_LIVES = 10.0
"""More of them between injection and scan leave a thousandth of the dose: the times are wrong."""
_MOMENT = re.compile(
    r"(?P<hour>\d{10})((?P<minute>\d{2})((?P<second>\d{2})(?P<part>\.\d{1,6})?)?)?(?P<zone>[+-]\d{4})?"
)
_DAY = timedelta(days=1)


def _moment(header: Header, date: str, time: str, day: str | None = None) -> datetime | None:
    """Date and time of two tags; None where the time is absent. `day` stands in for an absent date."""
    clock = header.text(time)
    if not clock:
        return None
    calendar = header.text(date) or day
    if not calendar:
        raise header.missing(date)
    return _parsed(header, time, calendar + clock)


def _parsed(header: Header, keyword: str, text: str) -> datetime:
    """Read a DICOM date and time; the error names the tag, not the text."""
    wrong = header.wrong(keyword, "is no date and time as DICOM writes them; export the series again")
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise wrong
    try:
        clock = f"{match['minute'] or '00'}{match['second'] or '00'}{(match['part'] or '.0')[:7]}"
        plain = datetime.strptime(match["hour"] + clock, "%Y%m%d%H%M%S.%f")  # noqa: DTZ007 - the zone follows
        if match["zone"] is None:
            return plain
        offset = header.text("TimezoneOffsetFromUTC")
        if not offset:  # times of the series have no zone then: the clock on the wall is compared
            return plain
        zone, local = (datetime.strptime(z, "%z").tzinfo for z in (match["zone"], offset))
        return plain.replace(tzinfo=zone).astimezone(local).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise wrong from None


def _reference(headers: Sequence[Header]) -> datetime:
    """Moment to which decay was corrected, where DecayCorrection is START.

    That is the start of the series, unless SeriesTime is later than an acquisition: then a workstation changed it, and
    the earliest acquisition is the start.
    """
    first = headers[0]
    series = _moment(first, "SeriesDate", "SeriesTime")
    day = first.text("SeriesDate") or None
    found = [m for h in headers if (m := _moment(h, "AcquisitionDate", "AcquisitionTime", day)) is not None]
    if series is None and not found:
        raise first.missing("SeriesTime")
    if len(found) < len(headers) and series is None:
        raise next(h for h in headers if not h.has("AcquisitionTime")).missing("AcquisitionTime")
    earliest = min(found) if found else series
    if series is None:
        return min(found)
    return series if earliest is None or series <= earliest else earliest


def _injection(header: Header, drug: Header, reference: datetime) -> datetime:
    """Moment of injection; a time alone is on the day of the scan, or the evening before."""
    text = drug.text("RadiopharmaceuticalStartDateTime")
    if text:
        return _parsed(header, "RadiopharmaceuticalStartDateTime", text)
    clock = drug.text("RadiopharmaceuticalStartTime")
    if not clock:
        raise header.missing("RadiopharmaceuticalStartTime")
    start = _parsed(header, "RadiopharmaceuticalStartTime", reference.strftime("%Y%m%d") + clock)
    return start if start <= reference else start - _DAY


def _positive(header: Header, keyword: str, value: float) -> float:
    if value <= 0:
        raise header.wrong(keyword, "should be positive; correct it, SUV cannot be computed")
    return value


def _weight(header: Header) -> float:
    weight = _positive(header, "PatientWeight", header.need_number("PatientWeight"))
    if weight > _HEAVIEST:
        raise header.wrong("PatientWeight", "should be in kilograms, and is too large for that; correct it")
    return weight


def suv_factor(header: Header, reference: datetime | None, limits: Limits) -> float:
    """Compute what a Bq/ml value is multiplied with to be SUV by body weight (g/ml).

    Args:
        header: of one slice.
        reference: start of the scan, for DecayCorrection START; not used for ADMIN.
        limits: bounds.

    Raises:
        DataError: a tag is missing or cannot be; named, without its value.
    """
    weight = _weight(header)
    drug = header.item("RadiopharmaceuticalInformationSequence", limits)
    if drug is None:
        raise header.missing("RadiopharmaceuticalInformationSequence")
    dose = _positive(header, "RadionuclideTotalDose", drug.need_number("RadionuclideTotalDose"))
    if dose < _LEAST_DOSE:
        raise header.wrong("RadionuclideTotalDose", "should be in becquerel, and is too small for that; correct it")
    if reference is None:  # corrected to the injection: the whole dose
        return weight * 1000.0 / dose
    half_life = _positive(header, "RadionuclideHalfLife", drug.need_number("RadionuclideHalfLife"))
    seconds = (reference - _injection(header, drug, reference)).total_seconds()
    if not 0 <= seconds <= _HALF_LIVES * half_life:
        raise header.wrong(
            "RadiopharmaceuticalStartDateTime"
            if drug.has("RadiopharmaceuticalStartDateTime")
            else "RadiopharmaceuticalStartTime",
            "is after the scan, or too many half lives before it; correct it",
        )
    return weight * 1000.0 / (dose * math.exp2(-seconds / half_life))


def suv_factors(headers: Sequence[Header], limits: Limits) -> list[float]:
    """Compute the factor of each slice of a PET series; 1 where the values are SUV by body weight already.

    Raises:
        DataError: units other than BQML (or GML by body weight), values not corrected for attenuation and decay, or one
            of `suv_factor`.
    """
    first = headers[0]
    for header in headers:
        for keyword in ("Units", "DecayCorrection", "CorrectedImage"):
            if not header.has(keyword):
                raise header.missing(keyword)
            if header.text(keyword) != first.text(keyword):
                raise header.wrong(keyword, "differs within the series; export the series again")
    if first.text("Units") == "GML" and first.text("SUVType") in {"", "BW"}:
        return [1.0] * len(headers)
    if first.text("Units") != "BQML":
        raise first.wrong("Units", "should be BQML, or GML with SUVType BW; export the series in Bq/ml")
    done = set(first.text("CorrectedImage").split("\\"))
    for need, name in (("ATTN", "attenuation"), ("DECY", "decay")):
        if need not in done:
            raise first.wrong("CorrectedImage", f"lacks {need}: not corrected for {name}; export the corrected series")
    moment = first.text("DecayCorrection")
    if moment not in {"START", "ADMIN"}:
        raise first.wrong("DecayCorrection", "should be START or ADMIN; export the corrected series")
    reference = _reference(headers) if moment == "START" else None
    return [suv_factor(header, reference, limits) for header in headers]
