"""The jobs of a sweep, composed and described."""

from stability.sweeps.jobs import InvalidJob, list_invalid


def test_invalid_jobs_are_listed_below_their_reason() -> None:
    jobs = [InvalidJob(f"seed={i}", "too\n  large") for i in range(6)]
    jobs.insert(1, InvalidJob("batch.size=2", "too small"))
    assert list_invalid(jobs).splitlines() == [
        "  too large",
        *(f"    seed={i}" for i in range(4)),
        "    and 2 more",
        "  too small",
        "    batch.size=2",
    ]


def test_a_job_without_overrides_of_its_own_has_a_name() -> None:
    assert list_invalid([InvalidJob("", "too small")]) == "  too small\n    the only configuration"
