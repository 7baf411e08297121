"""timm: the smallest model of every family, and some more of the large families, on small pictures."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import nn

from .zoo import Case, image

# They take pictures of any size.
FREE = """
    caformer_s18 convformer_s18 convmixer_768_32 convnext_atto convnext_atto_rms convnextv2_atto cpubone_nano
    cs3darknet_focus_s csatv2 cspnext_tiny cspresnet50 darknet53 davit_tiny densenet121 dla34 dla46x_c dm_nfnet_f0
    dpn48b ecaresnet26t edgenext_xx_small efficientnet_b0 efficientnet_es efficientnet_lite0
    efficientvit_b0 efficientvit_l1 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b
    focalnet_tiny_srf gcresnext26ts gemma4_vit_167m gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050
    hardcorenas_b hgnet_tiny hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lambda_resnet26t
    lcnetv2_small legacy_seresnet18 legacy_xception lowformer_b0 mambaout_femto mixnet_s mnasnet_small
    mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilenetv5_base
    mobileone_s0 mobileone_s1 mobilevit_xxs naflexvit_base_patch16_parfac_gap nasnetalarge nextvit_small
    nf_regnet_b0 nf_resnet26 nfnet_l0 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetv_040 regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m1 res2next50 resnest14d
    resnet18 resnet50_gn resnetaa34d resnetrs50 resnetv2_18 resnetv2_50 resnext26ts rexnet_100 sam2_hiera_tiny
    selecsls42 seresnet33ts seresnext26d_32x4d skresnet18 spnasnet_100 starnet_s050 tiny_vit_5m_224
    tinynet_e tresnet_m vgg11 vovnet39a xception41p
""".split()

# They are built for one size of pictures.
SIZED = """
    beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coatnet_pico_rw_224 convit_tiny
    deit3_small_patch16_224 deit_tiny_patch16_224 eca_botnext26ts_256 efficientformerv2_s0
    eva02_tiny_patch14_224 eva02_tiny_patch14_336 flexivit_small gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224
    maxvit_pico_rw_256 maxxvitv2_nano_rw_256 mixer_s32_224 mvitv2_tiny nest_tiny pit_ti_224
    resmlp_12_224 samvit_base_patch16_224 sequencer2d_s swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_cr_tiny_224 swinv2_tiny_window8_256 tnt_s_legacy_patch16_224 twins_svt_small visformer_tiny
    vit_base_patch32_clip_quickgelu_224 vit_medium_patch16_gap_240 vit_relpos_small_patch16_224
    vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
    xcit_nano_12_p8_224
""".split()

# They need larger ones, or are ill-conditioned in train mode on small ones: (pixels, whether the model is built for them)
LARGER = {
    "bat_resnext26ts": (256, False),
    "crossvit_tiny_240": (240, False),
    "deepseek_vit_412m": (112, False),
    "efficientformer_l1": (224, False),
    "efficientvim_m1": (128, False),
    "efficientvit_m0": (128, True),
    "halo2botnet50ts_256": (128, True),
    "halonet_h1": (256, False),
    "inception_resnet_v2": (160, False),
    "inception_v3": (160, False),
    "inception_v4": (160, False),
    "lamhalobotnet50ts_256": (128, True),
    "levit_128s": (128, True),
    "shvit_s1": (224, False),
}


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **options)
    return model


def cases() -> list[Case]:
    """All of them, by name."""
    sizes = dict.fromkeys(FREE, (64, False)) | dict.fromkeys(SIZED, (64, True)) | LARGER
    return [
        Case("timm", name, partial(_build, name, {"img_size": pixels} if built else {}), partial(image, size=pixels))
        for name, (pixels, built) in sorted(sizes.items())
    ]
