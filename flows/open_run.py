"""Opens a run, and closes everything that it has opened."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect import get_run_logger

from ..serving.background_loop import BackgroundLoop
from ..tasks.errors import ImageQAError
from ..tasks.object_store.patience import Patience
from ..tasks.runs.checks import NO_CHECKS
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import run_style
from ..tasks.runs.run_record import last_completed
from ..tasks.storing.layout import read_manifest
from .approval import check_can_ask
from .batch_results import BatchResults
from .open_store import open_store
from .pass_settings import image_reader
from .process_memory import rare_collections
from .progress import current_progress
from .run import Run
from .run_log import forward_logs


@contextmanager
def open_run(parameters: RunParameters) -> Iterator[Run]:
    """Open the output and the image reader; `Run.start` opens the rest. All are closed on exit.

    Raises:
        PilotError: it needs an approval, and there is nobody to ask.
        PrefectServerError: a block is named, but no Prefect server answers.
        StoreError: a URI has an unsupported scheme, there is no such block, or the output has
            another layout or cannot be read.
        ImageQAError: there is no such style, or it or a check does not go with the other
            parameters.
    """
    with ExitStack() as stack:
        stack.enter_context(rare_collections())
        stack.enter_context(forward_logs(get_run_logger()))
        progress, patience = current_progress(), Patience(parameters.limits.store_wait)
        stack.enter_context(progress.watching(patience))
        if parameters.pilot.approval:
            check_can_ask(progress)
        if parameters.checks.are_wanted and isinstance(parameters.endpoint, BatchResults):
            raise ImageQAError(NO_CHECKS)
        output = open_store(parameters.output, parameters.store).with_patience(patience)
        if read_manifest(output) is not None:  # fail early if it has another layout
            last_completed(output)
        loop = BackgroundLoop()
        stack.callback(loop.close)
        reader = stack.enter_context(image_reader(parameters.images, output.s3_credentials, loop))
        try:
            style = run_style(parameters, output.s3_credentials)
            yield Run(parameters, style, output, reader, progress, patience, loop, stack)
        finally:
            patience.stop()  # what the run leaves behind, such as threads that read images
