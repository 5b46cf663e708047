"""What the fuzzer has found and nobody has fixed yet: each is left out of its check, here alone."""

from __future__ import annotations

from braze_sends.quota.bucket import NO_CAP, Bucket


def far_lease(bucket: Bucket) -> bool:
    """A create waits for another's lease until its deadline, be that in 30 years, whatever its
    ``max_rate_limit_wait``: for the same pair, and for any while the state is unknown."""
    return any(lease.deadline > 300 for lease in bucket.leases.values())


def full_count(bucket: Bucket) -> bool:
    """``load_bucket`` takes a count of ``NO_CAP``; one more is kept, and damages the record."""
    counts = [count for hour in bucket.tally.hours.values() for count in hour.values()]
    return max([bucket.created, bucket.cleared, *counts]) > NO_CAP - 1000
