"""Train the demo model from scratch, in the server environment.

Run `python -m serving.demo_model.training.train` in the repository root. First the vision tower and
its connector learn from labels what is in each cell. Then, with the vision frozen and its features
computed once, the language model learns to talk about them. Everything is seeded and scheduled by
steps, so that a run is reproducible.

With `--start CHECKPOINT`, the vision is that checkpoint's, and the language model continues from
its weights on all lessons, with a tokenizer that knows their words.
"""

import argparse
import copy
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from ..scenes import Scene, random_scene
from .batches import Batch, Encoder, make_batch
from .model import build_network, build_processor, build_tokenizer, copy_weights
from .optimise import Optimisers
from .vision import all_features, prepare_images, train_vision

logger = logging.getLogger(__name__)

_ROWS = 8  # lessons per step
_RATE = 2.5e-3


def train_language(
    network: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: torch.Tensor,
    scenes: Sequence[Scene],
    rng: random.Random,
    steps: int,
    *,
    continued: bool = False,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Stage two: train the language model on lessons about cached image features.

    The vision stays as it is. A `continued` model has learnt to describe and answer before.
    `save` is called every 500 steps.
    """
    encoder = Encoder(tokenizer)
    order = _shuffled_forever(len(scenes), rng)
    optimisers = Optimisers([network.model.text_model, network.lm_head], _RATE, steps, hold=0.4)
    average, tokens, started = 0.0, 0, time.monotonic()
    for step in range(steps):
        chosen = [next(order) for _ in range(_ROWS)]
        progress = 1 if continued else step / steps
        batch = make_batch([scenes[index] for index in chosen], rng, progress, encoder)
        loss = _loss(network, batch, features[chosen], encoder.image_id)
        optimisers.step(loss)
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        tokens += batch.ids.numel()
        if step % 100 == 99:
            rate = tokens / (time.monotonic() - started)
            logger.info("language step %d: loss %.4f, %.0f tokens/s", step + 1, average, rate)
        if step % 500 == 499:
            save()


def _shuffled_forever(count: int, rng: random.Random) -> Iterator[int]:
    order = list(range(count))
    while True:
        rng.shuffle(order)
        yield from order


def _loss(
    network: Idefics3ForConditionalGeneration, batch: Batch, features: torch.Tensor, image_id: int
) -> torch.Tensor:
    """The weighted mean of the losses of all tokens that are predicted."""
    text = network.model.text_model
    embedded = text.embed_tokens(batch.ids)
    row, column = (batch.ids == image_id).nonzero(as_tuple=True)
    # A row may contain its image several times, once per branch, always with all tokens in order.
    nth = (batch.ids == image_id).cumsum(1)[row, column] - 1
    embedded = embedded.index_put((row, column), features[row, nth % features.shape[1]])
    hidden = text(
        inputs_embeds=embedded,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    weighted = batch.weights > 0
    losses = functional.cross_entropy(
        network.lm_head(hidden[weighted]), batch.targets[weighted], reduction="none"
    )
    weights = batch.weights[weighted]
    return (losses * weights).sum() / weights.sum()


def train(
    output: Path,
    start: Path | None,
    seed: int,
    vision_steps: int,
    language_steps: int,
    scenes: int,
) -> None:
    """Train both stages, or the second from a checkpoint; write one that a vLLM server can load."""
    torch.manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311 - not used for secrets
    tokenizer = _tokenizer(start, rng)
    processor = build_processor(tokenizer)
    network = build_network(tokenizer)
    logger.info("%d parameters, %d token ids", network.num_parameters(), len(tokenizer))

    train_scenes = [random_scene(rng) for _ in range(scenes)]
    pixels = prepare_images(train_scenes, rng, processor)
    logger.info("%d scenes drawn", scenes)
    if start is None:
        train_vision(network, pixels, train_scenes, vision_steps)
    else:
        copy_weights(start, network, tokenizer)
    features = all_features(network, pixels)

    def save() -> None:
        processor.save_pretrained(output)
        copy.deepcopy(network).to(torch.bfloat16).save_pretrained(output)
        logger.info("saved to %s", output)

    train_language(
        network,
        tokenizer,
        features,
        train_scenes,
        rng,
        language_steps,
        continued=start is not None,
        save=save,
    )
    save()


def _tokenizer(start: Path | None, rng: random.Random) -> PreTrainedTokenizerFast:
    """The start's tokenizer, unless its vocabulary has another size."""
    tokenizer = build_tokenizer(rng)
    if start is not None:
        known = PreTrainedTokenizerFast.from_pretrained(start)
        if len(known) == len(tokenizer):
            known.chat_template = tokenizer.chat_template
            return known
    return tokenizer


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "checkpoint")
    parser.add_argument("--start", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=800)
    parser.add_argument("--language-steps", type=int, default=6000)
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--threads", type=int, default=1, help="more help only on idle cores")
    arguments = vars(parser.parse_args())
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    torch.set_num_threads(arguments.pop("threads"))
    train(**arguments)


if __name__ == "__main__":
    main()
