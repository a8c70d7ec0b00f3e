"""What several commands share: types of options, and the error of options that make no sense."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Flag = Annotated[bool, Parameter(negative=())]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Output = Annotated[str, Parameter(help="Local path or s3:// URI of the output of a run.")]
Store = Annotated[
    str | None,
    Parameter(
        help="Name of a saved Image QA Store block whose S3 credentials are used; by default the "
        "AWS environment, profile or role."
    ),
]
ImageRoot = Annotated[str | None, Parameter(help="As --image-root of the run.")]
PrivateHosts = Annotated[
    bool,
    Parameter(negative=(), help="Also fetch web images from private and loopback addresses."),
]


class UsageError(Exception):
    """The options of a command do not go together; the message says what to give. Exit code 2."""
