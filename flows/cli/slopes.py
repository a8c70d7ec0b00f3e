"""What a run takes, as it was measured: the numbers that `sizes` computes with.

Each says what was measured, when, and up to how many rows: for more, it is extrapolated. All were
measured on two cores of AMD EPYC with a stub of the server, rows with images of 640x480 and one
short pair each, and a local S3 server. Longer replies take more bytes, and little more time.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slope:
    """A cost that grows with the rows.

    Attributes:
        fixed: what a run takes with any number of them.
        per_row: what a further row takes.
        rows: those of the largest run that was measured.
        source: how, and when.
    """

    fixed: float
    per_row: float
    rows: int
    source: str

    def of(self, rows: int) -> float:
        """What so many rows take."""
        return self.fixed + self.per_row * rows


@dataclass(frozen=True)
class Requests:
    """Requests to S3.

    Attributes:
        writes: those that are charged as PUT, POST or LIST.
        reads: those that are charged as GET or HEAD.
    """

    writes: float
    reads: float


PERFORMANCE = "docs/performance.md, 4,096 and 32,768 rows, 2026-11-27"
PROCESSES = "CPU time of the processes, 4,096 and 20,480 rows, 2026-11-28"
LEDGER = "benchmarks/ledger.py --local, 100,000 and 400,000 rows, 2026-11-28"
MEMORY = "a run of 20,480 rows; for further ones, as the ledger; 2026-11-28"
S3 = "counted on a local S3 server, 4,096 to 131,072 rows, 2026-11-28"

# --- seconds of CPU -------------------------------------------------------------------------------

RUN_CPU = Slope(6.3, 0.70e-3, 32_768, PERFORMANCE)
"""A run without workers, Prefect's server included."""

COORDINATOR_CPU = Slope(6.5, 0.19e-3, 20_480, PROCESSES)
"""A run that has workers, Prefect's server included."""

WORKERS_CPU = Slope(2.5, 0.46e-3, 20_480, PROCESSES)
"""All workers of a run together; the fixed part is that of each."""

LARGE_IMAGE_CPU = 35e-3
"""To shrink a JPEG of 12 megapixels; 18 of them, 2026-11-28."""

BUSY = 0.7
"""How busy a process can be without holding others up: Python runs one thread at a time."""

# --- memory, MiB ----------------------------------------------------------------------------------

RUN_MEMORY = Slope(430, 150 / 2**20, 1_000_000, "a run of 1,000,000 rows, 2026-11-28")
COORDINATOR_MEMORY = Slope(320, 150 / 2**20, 400_000, MEMORY)
"""A run without and with workers: what is in flight, and an entry for each row."""

WORKER_MEMORY = Slope(400, 0, 20_480, "a run of 20,480 rows, 2026-11-28")
"""Of each worker. Its images and batches in flight take it, whatever the number of rows."""

PREFECT_MEMORY = 240.0
"""Prefect's server, if the run starts it; 20,480 rows, 2026-11-28."""

# --- ledger and exports ---------------------------------------------------------------------------

LEDGER_SECONDS = Slope(1.0, 3.4e-6, 400_000, LEDGER)
LEDGER_MEMORY = Slope(240, 150 / 2**20, 400_000, LEDGER)
"""To read what is finished, at the start of a run that resumes; seconds of CPU, and the peak."""

EXPORT_SECONDS = Slope(1.0, 53e-6, 400_000, LEDGER)
"""To write these files, seconds of CPU."""

EXPORT_BYTES = Slope(0, 186, 131_072, S3)
"""Of qa.jsonl, pairs.parquet and rows.parquet, with a pair of 30 characters for each row."""

STORED_BYTES = Slope(0.8e6, 511, 131_072, S3)
"""Of everything else in the output: replies, parts, row keys, report."""

# --- objects and requests -------------------------------------------------------------------------

FIXED_OBJECTS = 10
"""Objects of an output that are there whatever it contains."""

FIRST_BATCHES = 3
"""Batches that there are besides, since the first ones are smaller."""

FIXED_REQUESTS = Requests(45, 75)
BATCH_REQUESTS = Requests(2, 4)
MERGED_REQUESTS = Requests(1, 11)
IMAGE_REQUESTS = Requests(0, 2)
"""Of a run; of each batch; of each part that is merged from many; of each image that is on S3."""

HANDED_REQUESTS = Requests(3, 4)
"""Of each batch that is handed to a worker, besides."""

RUN_REQUESTS = Requests(0.1, 0)
COORDINATOR_REQUESTS = Requests(2, 0)
WORKER_REQUESTS = Requests(3, 1.2)
"""In a second: the heartbeat of a run; of a run that has workers, besides; and of each worker."""

REQUEST_ROWS = 131_072
"""Rows of the largest run whose requests were counted."""

WRITE_PRICE, READ_PRICE = 0.005, 0.0004
"""US dollars for 1,000 requests: the public list price of Amazon S3 Standard in the region
us-east-1 (N. Virginia), as known in 2025. Removing objects is free. Other regions take up to twice
as much, other stores often nothing. Storage and traffic come on top."""
