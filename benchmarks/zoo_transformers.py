"""Model classes of transformers, small and from random configurations."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .zoo import Case, image

TOKENS = 17
WORDS = 120
Inputs = Callable[[int], dict[str, Any]]


def _ids(batch: int, length: int = TOKENS) -> Tensor:
    return torch.randint(5, WORDS - 5, (batch, length))


def _text(batch: int) -> dict[str, Any]:
    """The last two tokens of the first text are padding."""
    mask = torch.ones(batch, TOKENS, dtype=torch.int64)
    mask[0, -2:] = 0
    return {"input_ids": _ids(batch), "attention_mask": mask}


def _decoder(batch: int) -> dict[str, Any]:
    return {"input_ids": _ids(batch), "use_cache": False}


def _pair(batch: int) -> dict[str, Any]:
    return {"input_ids": _ids(batch), "decoder_input_ids": _ids(batch, 9), "use_cache": False}


def _pixels(batch: int, size: int = 64) -> dict[str, Any]:
    return {"pixel_values": image(batch, size)}


def _wave(batch: int) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 4000)}


def _both(batch: int) -> dict[str, Any]:
    return {**_text(batch), **_pixels(batch)}


def _looking(batch: int, **inputs: Any) -> dict[str, Any]:
    """Text in which four tokens stand for what is seen."""
    ids = torch.cat([torch.full((batch, 4), WORDS - 1), _ids(batch)], 1)
    return {"input_ids": ids, "use_cache": False, **inputs}


def _looking_at(batch: int, shape: tuple[int, ...]) -> dict[str, Any]:
    return _looking(batch, pixel_values=torch.randn(batch, *shape))


def _looking_at_patches(batch: int) -> dict[str, Any]:
    patches, grid = torch.randn(16 * batch, 3 * 2 * 4 * 4), torch.tensor([[1, 4, 4]] * batch)
    given = _looking(batch, pixel_values=patches, image_grid_thw=grid)
    return {**given, "mm_token_type_ids": (given["input_ids"] == WORDS - 1).long()}


# The sizes that most configurations share.
ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
GATED = {**ENCODER, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SEQ2SEQ = {"vocab_size": WORDS, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64}  # fmt: skip
VISION = {"image_size": 64, "patch_size": 16, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 96}  # fmt: skip
NO_VOCABULARY = {k: v for k, v in ENCODER.items() if k != "vocab_size"}
SEER = {"image_size": 16, "patch_size": 8, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4}  # fmt: skip
SPOKEN = {"model_type": "llama", **GATED}
MOE = {
    **GATED,
    "experts_implementation": "eager",
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
SPEECH = {"vocab_size": 32, **NO_VOCABULARY, "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 2), "conv_kernel": (10, 4, 3),
          "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
          "mask_time_prob": 0.0}  # fmt: skip
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
TEXT_TOWER = {**ENCODER, "max_position_embeddings": 64, "projection_dim": 32, "eos_token_id": 2}
TOWERS = {"text_config": TEXT_TOWER, "vision_config": {**VISION, "projection_dim": 32}, "projection_dim": 32}

# class, configuration, options, inputs
MODELS: tuple[tuple[str, str, dict[str, Any], Inputs], ...] = (
    ("BertForSequenceClassification", "BertConfig", ENCODER, _text),
    ("BertForMaskedLM", "BertConfig", ENCODER, _text),
    ("RobertaForMaskedLM", "RobertaConfig", ENCODER, _text),
    ("XLMRobertaForTokenClassification", "XLMRobertaConfig", ENCODER, _text),
    ("DistilBertForSequenceClassification", "DistilBertConfig",
     {"vocab_size": WORDS, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}, _text),
    ("AlbertForSequenceClassification", "AlbertConfig", {**ENCODER, "embedding_size": 24}, _text),
    ("ElectraForSequenceClassification", "ElectraConfig", {**ENCODER, "embedding_size": 24}, _text),
    ("DebertaForSequenceClassification", "DebertaConfig",
     {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 64}, _text),
    ("DebertaV2ForSequenceClassification", "DebertaV2Config",
     {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 64}, _text),
    ("MPNetForSequenceClassification", "MPNetConfig", ENCODER, _text),
    ("MobileBertForSequenceClassification", "MobileBertConfig",
     {**ENCODER, "embedding_size": 24, "intra_bottleneck_size": 24, "true_hidden_size": 24}, _text),
    ("FNetForSequenceClassification", "FNetConfig", {k: v for k, v in ENCODER.items() if k != "num_attention_heads"},
     lambda batch: {"input_ids": _ids(batch)}),
    ("ModernBertForSequenceClassification", "ModernBertConfig", {**ENCODER, "pad_token_id": 0, "bos_token_id": 1,
     "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}, _text),
    ("XLNetForSequenceClassification", "XLNetConfig", {"vocab_size": WORDS, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 96},
     lambda batch: {**_text(batch), "use_mems": False}),
    ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": WORDS, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}, _decoder),
    ("GPTNeoForCausalLM", "GPTNeoConfig", {"vocab_size": WORDS, "hidden_size": 48, "num_layers": 2, "num_heads": 4,
     "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "window_size": 8}, _decoder),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**ENCODER, "max_position_embeddings": 64}, _decoder),
    ("GPTJForCausalLM", "GPTJConfig",
     {"vocab_size": WORDS, "n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}, _decoder),
    ("CodeGenForCausalLM", "CodeGenConfig",
     {"vocab_size": WORDS, "n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}, _decoder),
    ("GPTBigCodeForCausalLM", "GPTBigCodeConfig",
     {"vocab_size": WORDS, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}, _decoder),
    ("OPTForCausalLM", "OPTConfig", {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
     "ffn_dim": 96, "word_embed_proj_dim": 48, "max_position_embeddings": 64}, _decoder),
    ("BloomForCausalLM", "BloomConfig", {"vocab_size": WORDS, "hidden_size": 48, "n_layer": 2, "n_head": 4}, _decoder),
    ("FalconForCausalLM", "FalconConfig", {**NO_VOCABULARY, "vocab_size": WORDS}, _decoder),
    ("LlamaForCausalLM", "LlamaConfig", GATED, _decoder),
    ("MistralForCausalLM", "MistralConfig", GATED, _decoder),
    ("Qwen2ForCausalLM", "Qwen2Config", GATED, _decoder),
    ("Qwen3ForCausalLM", "Qwen3Config", GATED, _decoder),
    ("GemmaForCausalLM", "GemmaConfig", GATED, _decoder),
    ("Gemma2ForCausalLM", "Gemma2Config", GATED, _decoder),
    ("PhiForCausalLM", "PhiConfig", GATED, _decoder),
    ("Phi3ForCausalLM", "Phi3Config", GATED, _decoder),
    ("StableLmForCausalLM", "StableLmConfig", {**GATED, "partial_rotary_factor": 0.5}, _decoder),
    ("OlmoForCausalLM", "OlmoConfig", GATED, _decoder),
    ("CohereForCausalLM", "CohereConfig", GATED, _decoder),
    ("MixtralForCausalLM", "MixtralConfig", MOE, _decoder),
    ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**MOE, "shared_expert_intermediate_size": 32}, _decoder),
    ("MambaForCausalLM", "MambaConfig", {"vocab_size": WORDS, "hidden_size": 48, "state_size": 8, "num_hidden_layers": 2}, _decoder),
    ("RwkvForCausalLM", "RwkvConfig", {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "context_length": 64}, _decoder),
    ("T5ForConditionalGeneration", "T5Config", {"vocab_size": WORDS, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2,
     "num_heads": 4}, _pair),
    ("T5EncoderModel", "T5Config", {"vocab_size": WORDS, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4,
     "feed_forward_proj": "gated-gelu"}, _text),
    ("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, _pair),
    ("MBartForConditionalGeneration", "MBartConfig", SEQ2SEQ, _pair),
    ("MarianMTModel", "MarianConfig", {**SEQ2SEQ, "pad_token_id": 0, "decoder_start_token_id": 0}, _pair),
    ("PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ, _pair),
    ("BlenderbotForConditionalGeneration", "BlenderbotConfig", SEQ2SEQ, _pair),
    ("M2M100ForConditionalGeneration", "M2M100Config", SEQ2SEQ, _pair),
    ("WhisperForConditionalGeneration", "WhisperConfig", {**SEQ2SEQ, "num_mel_bins": 20, "max_source_positions": 50,
     "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
     "suppress_tokens": None, "begin_suppress_tokens": None},
     lambda batch: {"input_features": torch.randn(batch, 20, 100), "decoder_input_ids": _ids(batch, 9), "use_cache": False}),
    ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, _wave),
    ("HubertForCTC", "HubertConfig", SPEECH, _wave),
    ("WavLMForCTC", "WavLMConfig", SPEECH, _wave),
    ("ASTForAudioClassification", "ASTConfig", {**NO_VOCABULARY, "num_mel_bins": 32, "max_length": 64},
     lambda batch: {"input_values": torch.randn(batch, 64, 32)}),
    ("ViTForImageClassification", "ViTConfig", VISION, _pixels),
    ("DeiTForImageClassification", "DeiTConfig", VISION, _pixels),
    ("BeitForImageClassification", "BeitConfig", VISION, _pixels),
    ("Data2VecVisionForImageClassification", "Data2VecVisionConfig", VISION, _pixels),
    ("Dinov2ForImageClassification", "Dinov2Config", {**VISION, "mlp_ratio": 2}, _pixels),
    ("ViTMAEModel", "ViTMAEConfig", {**VISION, "mask_ratio": 0.0}, lambda batch: {**_pixels(batch), "noise": torch.rand(batch, 16)}),
    ("SwinForImageClassification", "SwinConfig", {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2],
     "num_heads": [2, 4], "window_size": 4}, _pixels),
    ("Swinv2ForImageClassification", "Swinv2Config", {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2],
     "num_heads": [2, 4], "window_size": 4}, _pixels),
    ("ConvNextForImageClassification", "ConvNextConfig", STAGES, _pixels),
    ("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, _pixels),
    ("ResNetForImageClassification", "ResNetConfig", {"embedding_size": 16, **STAGES}, _pixels),
    ("RegNetForImageClassification", "RegNetConfig", {"embedding_size": 16, **STAGES, "groups_width": 8}, _pixels),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"image_size": 64}, _pixels),
    ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64, "hidden_sizes": [48, 56, 64]}, _pixels),
    ("LevitForImageClassification", "LevitConfig", {"image_size": 128}, partial(_pixels, size=128)),
    ("PoolFormerForImageClassification", "PoolFormerConfig", {**STAGES, "strides": [4, 2, 2, 2]}, _pixels),
    ("CvtForImageClassification", "CvtConfig", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, _pixels),
    ("PvtV2ForImageClassification", "PvtV2Config", {"image_size": 64, **STAGES, "num_attention_heads": [1, 2, 4, 4]}, _pixels),
    ("SegformerForSemanticSegmentation", "SegformerConfig",
     {**STAGES, "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 32}, _pixels),
    ("DPTForDepthEstimation", "DPTConfig", {**VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
     "neck_hidden_sizes": [16, 32, 48, 48], "fusion_hidden_size": 32}, _pixels),
    ("GLPNForDepthEstimation", "GLPNConfig", {**STAGES, "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 32}, _pixels),
    ("YolosForObjectDetection", "YolosConfig", {**VISION, "image_size": [64, 64], "num_detection_tokens": 10}, _pixels),
    ("DetrForObjectDetection", "DetrConfig", {**{k: v for k, v in SEQ2SEQ.items() if k not in ("vocab_size", "max_position_embeddings")},
     "num_queries": 10, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
     "backbone_config": {"model_type": "resnet", "embedding_size": 16, **STAGES, "out_features": ["stage4"]}}, _pixels),
    ("VideoMAEForVideoClassification", "VideoMAEConfig", {**VISION, "num_frames": 4},
     lambda batch: {"pixel_values": torch.randn(batch, 4, 3, 64, 64)}),
    ("TimesformerForVideoClassification", "TimesformerConfig", {**VISION, "num_frames": 4},
     lambda batch: {"pixel_values": torch.randn(batch, 4, 3, 64, 64)}),
    ("CLIPModel", "CLIPConfig", TOWERS, _both),
    ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 32}, _pixels),
    ("SiglipModel", "SiglipConfig", {"text_config": TEXT_TOWER, "vision_config": VISION}, _both),
    ("BlipForImageTextRetrieval", "BlipConfig", {"text_config": {**TEXT_TOWER, "encoder_hidden_size": 48, "bos_token_id": 1,
     "sep_token_id": 2, "pad_token_id": 0}, "vision_config": VISION, "projection_dim": 32, "image_text_hidden_size": 32}, _both),
    ("ViltForQuestionAnswering", "ViltConfig", {**ENCODER, "image_size": 64, "patch_size": 16, "num_labels": 7,
     "max_position_embeddings": 64}, _both),
    ("GroupViTModel", "GroupViTConfig", {"text_config": TEXT_TOWER, "vision_config": {**VISION, "depths": [1, 1, 1],
     "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4]}, "projection_dim": 32, "projection_intermediate_dim": 64}, _both),
    ("LlavaForConditionalGeneration", "LlavaConfig", {"vision_config": {"model_type": "clip_vision_model", **SEER},
     "text_config": SPOKEN, "image_token_index": WORDS - 1, "vision_feature_layer": -1}, partial(_looking_at, shape=(3, 16, 16))),
    ("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", {"vision_config": {"model_type": "siglip_vision_model", **SEER,
     "vision_use_head": False}, "text_config": {**SPOKEN, "model_type": "gemma"}, "image_token_index": WORDS - 1,
     "projection_dim": 48, "hidden_size": 48}, partial(_looking_at, shape=(3, 16, 16))),
    ("Idefics3ForConditionalGeneration", "Idefics3Config", {"vision_config": {**SEER, "patch_size": 4}, "text_config": SPOKEN,
     "image_token_id": WORDS - 1, "scale_factor": 2}, partial(_looking_at, shape=(1, 3, 16, 16))),
    ("InternVLForConditionalGeneration", "InternVLConfig", {"vision_config": {**SEER, "image_size": [16, 16], "patch_size": [4, 4]},
     "text_config": {**SPOKEN, "model_type": "qwen2"}, "image_token_id": WORDS - 1, "downsample_ratio": 0.5},
     partial(_looking_at, shape=(3, 16, 16))),
    ("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", {"text_config": {**SPOKEN, "model_type": "qwen2_vl_text",
     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}},
     "vision_config": {"depth": 2, "embed_dim": 48, "hidden_size": 48, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4},
     "image_token_id": WORDS - 1}, _looking_at_patches),
    ("TimeSeriesTransformerModel", "TimeSeriesTransformerConfig", {"prediction_length": 4, "context_length": 8, "d_model": 32,
     "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
     "decoder_ffn_dim": 64, "lags_sequence": [1, 2, 3], "num_time_features": 2},
     lambda batch: {"past_values": torch.randn(batch, 11), "past_time_features": torch.randn(batch, 11, 2),
                    "past_observed_mask": torch.ones(batch, 11), "future_values": torch.randn(batch, 4),
                    "future_time_features": torch.randn(batch, 4, 2), "use_cache": False}),
    ("PatchTSTForPrediction", "PatchTSTConfig", {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8,
     "prediction_length": 4, "d_model": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 64},
     lambda batch: {"past_values": torch.randn(batch, 32, 2)}),
)  # fmt: skip


def _build(kind: str, configuration: str, options: dict[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, configuration)(**options))
    return model


class Logits(nn.Module):
    """A model whose callers read its logits alone: encoder states and attention maps are its own affair."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits


# Models that return hidden states beside their logits, and so keep the width of these when they are pruned whole.
STATES = (
    "T5ForConditionalGeneration", "BartForConditionalGeneration", "MBartForConditionalGeneration", "MarianMTModel",
    "PegasusForConditionalGeneration", "BlenderbotForConditionalGeneration", "M2M100ForConditionalGeneration",
    "WhisperForConditionalGeneration", "LlavaForConditionalGeneration", "PaliGemmaForConditionalGeneration",
    "Idefics3ForConditionalGeneration", "InternVLForConditionalGeneration", "Qwen2VLForConditionalGeneration",
)  # fmt: skip


def _logits_of(kind: str, configuration: str, options: dict[str, Any]) -> nn.Module:
    return Logits(_build(kind, configuration, options))


def cases() -> list[Case]:
    """Every class with inputs by keyword; traced with two examples, since the first has padding."""
    whole = [Case("transformers", row[0], partial(_build, *row[:3]), row[3], examples=2) for row in MODELS]
    rows = [row for row in MODELS if row[0] in STATES]
    return whole + [
        Case("transformers", f"{row[0]} (logits)", partial(_logits_of, *row[:3]), row[3], examples=2) for row in rows
    ]
