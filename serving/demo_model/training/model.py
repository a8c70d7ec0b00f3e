"""The model's parts: tokenizer, processor and network, all stock Hugging Face classes."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from ..scenes import random_scene
from .lessons import ASSISTANT, END, IMAGE, SYSTEM, USER, make_lesson

PAD, START = "<pad>", "<|im_start|>"
IMAGE_EDGE, GLOBAL_IMAGE = "<fake_token_around_image>", "<global-img>"
SPECIAL_TOKENS = [PAD, START, END, IMAGE, IMAGE_EDGE, GLOBAL_IMAGE, SYSTEM, USER, ASSISTANT]

VOCABULARY = 1280
IMAGE_SIDE = 96  # pixels
PATCH_SIDE = 16  # pixels
PATCHES_PER_SIDE = IMAGE_SIDE // PATCH_SIDE
SHUFFLE = 2  # the connector merges 2x2 patches into one image token
TOKENS_PER_SIDE = PATCHES_PER_SIDE // SHUFFLE  # each of the 3x3 tokens is one cell of a scene
IMAGE_TOKENS = TOKENS_PER_SIDE**2
VISION_WIDTH = 96
TEXT_WIDTH = 128
HEAD_WIDTH = 32  # the smallest that vLLM's CPU attention supports
CONTEXT = 2048  # tokens

EXPANDED_IMAGE = f"{IMAGE_EDGE}{GLOBAL_IMAGE}{IMAGE * IMAGE_TOKENS}{IMAGE_EDGE}"
"""The tokens that the processor puts in place of one image placeholder."""

# Images always come before the text, so that the model has only one order to learn.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<end_of_utterance>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(rng: random.Random, lessons: int = 3000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on sampled lessons; it can encode any text."""
    texts: list[str] = []
    for _ in range(lessons):
        lesson = make_lesson(random_scene(rng), rng, progress=1)
        texts.append(lesson.prompt)
        texts += ["".join(span.text for span in branch) for branch in lesson.branches[:4]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for special in SPECIAL_TOKENS:
        texts = [text.replace(special, " ") for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={
            "image_token": IMAGE,
            "fake_image_token": IMAGE_EDGE,
            "global_image_token": GLOBAL_IMAGE,
            "global_image_tag": GLOBAL_IMAGE,
            "end_of_utterance_token": END,
        },
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """The processor: resizes every image to one small square and never splits it."""
    side = {"longest_edge": IMAGE_SIDE}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    return Idefics3Processor(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_network(tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """An untrained network of about 1.3 million parameters."""
    vision = Idefics3VisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=VISION_WIDTH // HEAD_WIDTH,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=TEXT_WIDTH // HEAD_WIDTH,
        num_key_value_heads=TEXT_WIDTH // HEAD_WIDTH,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=SHUFFLE,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Idefics3ForConditionalGeneration(config)


def copy_weights(
    checkpoint: Path,
    network: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Copy a checkpoint's weights into a network whose tokenizer has another vocabulary.

    A token that the checkpoint does not have gets the mean of the tokens it would have been there.
    """
    old_network = Idefics3ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    old_tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    old = old_network.state_dict()
    new = network.state_dict()
    pieces = [_pieces(tokenizer, old_tokenizer, number) for number in range(len(tokenizer))]
    for name, weights in old.items():
        if weights.shape == new[name].shape and "embed_tokens" not in name:
            new[name].copy_(weights)
        else:
            rows = [weights[numbers].mean(0) for numbers in pieces]
            new[name][: len(rows)] = torch.stack(rows)


def _pieces(
    tokenizer: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast, number: int
) -> list[int]:
    token = tokenizer.convert_ids_to_tokens(number)
    known = old.get_vocab().get(token)
    if known is not None:
        return [known]
    merged = old.backend_tokenizer.model.tokenize(token)
    return [piece.id for piece in merged]
