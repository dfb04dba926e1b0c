"""Secure sums: the aggregator learns the sum of the sites' vectors and nothing else about them.

No sockets, no clock, no files: messages in, messages out. `group` says who adds up and under which numbers, `messages` what is
said, `wire` how it looks as bytes, `site_party` and `aggregator_party` who answers what in which state; `keys`, `masks` and
`shamir` are the arithmetic, `block` what a site keeps of the steps whose keys are dealt together. docs/secure-aggregation.md
says what it guarantees, and against whom.

    vector -> SiteParty.upload -> | wire | -> AggregatorParty.take -> .asks -> | wire | -> SiteParty.answer -> ... -> .result
"""

from oncofed_shared.secagg.aggregator_party import AggregatorParty, AggregatorPhase
from oncofed_shared.secagg.group import Group, Step, smallest_threshold
from oncofed_shared.secagg.site_party import SiteParty, SitePhase
from oncofed_shared.secagg.wire import from_bytes, to_bytes

__all__ = [
    "AggregatorParty",
    "AggregatorPhase",
    "Group",
    "SiteParty",
    "SitePhase",
    "Step",
    "from_bytes",
    "smallest_threshold",
    "to_bytes",
]
