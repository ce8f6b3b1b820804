"""Which arguments of a timm model may be given, in `unic-pipe.yaml`, by a foreign folder, or on the command line.

They shape the architecture and nothing else. Whatever loads, fetches or executes something, or changes what the model
returns, is decided by this program: weights that come in by another way than `weights` would be in no digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from unic_pipe.schemas.errors import UserError, did_you_mean

_NAMES = """
    aa_layer aa_stem_only abs_win_pos_embed act_layer always_partition attn attn_act_layer attn_drop_rate
    attn_groups attn_head_dim_reduction attn_layer attn_mlp attn_mlp_ratio attn_only_layer_scale
    attn_pool_mlp_ratio attn_pool_num_heads attn_ratio attn_stage attn_type attn_types attn_upsample aux_logits
    avg_down b base_dim base_dims base_width basic bidirectional block_config block_reduce_first block_type
    bn_eps bn_momentum bn_size bottle_ratio bottleneck_width_ratio cardinality ch_div channel_attention
    channel_attn_v2 channel_multiplier channels class_token cls_attn_layers cls_ratio conv_bias conv_init
    conv_layer conv_mlp conv_ratio cpe_act crop_scale d2_scales deepen_factor depth depth_list depth_mult
    depth_token_only depths dim dim_mul dims distillation distilled down_kernel_size down_pad down_patch_size
    down_stride downsample downsample_block downsample_expand_ratios downsample_kernel_size downsample_norm
    downsample_padding downsample_ratio downsamples drop_block_rate drop_block_size drop_path_rate drop_rate
    dropout dw_act_layer dynamic_img_pad dynamic_img_size embed_dim embed_dims embed_norm embed_norm_layer
    encoder_pool eta expand_groups expand_ratio expansion_ratio extra_norm_period extra_norm_stage fc_act_layer
    fc_norm feature_dim feature_location ffn ffn_ratio final_chs final_norm first_stride fix_init fix_stem
    focal_levels focal_windows fused_conv fused_downsample global_att_blocks global_attn_indexes
    global_block_counts global_pool global_pos_size group groups growth_rate growth_rates head head_bias
    head_dim head_hidden_size head_init_scale head_mul head_norm head_norm_first head_widths heads hidden_sizes
    img_scale img_size in_channels in_chans inc_sec init_channels init_values initial_chs inner_dim inplanes
    input_3x3 intermediate_size is_downsample_block k_r k_sec kernel_size kernel_sizes kernels key_dim
    layer_scale layer_scale_init_value layer_scale_init_values layers layerscale_value legacy levels linear
    lkc_use_act local_conv_size local_mbconv_norm local_up_to_layer locality_strength ls_init_value
    mask_unit_attn mask_unit_size mbconv_expand_ratio memory_efficient merge_size mix_block_ratio mlp_act
    mlp_bias mlp_ratio mlp_ratio_token_only mlp_ratios msfa_indices msfa_output_resolution multi_conv n_div
    neck_chans nlhb no_embed_class norm_eps norm_layer norm_layer_cl norm_layers normalize_modulator num_blocks
    num_blocks_list num_features num_heads num_heads_inner num_heads_outer num_init_features num_kv_heads
    num_levels num_reg_tokens num_rnn_layers num_vit outlook_attention output_norm output_stride pad_type
    parallel_depth partial_dim patch_drop_rate patch_kernel patch_norm patch_padding patch_size patch_sizes
    patch_stride pconv_fw_type pool_include_prefix pool_size pooling_kernel_size pooling_scale pos_drop_rate
    pos_embed pos_embed_grid_size position_embedding_size post_layers pre_norm preact pretrained_window_sizes
    proj_bias proj_drop_rate q_pool q_stride qk_dim qk_norm qkv_bias qkv_fused reduction ref_feat_shape
    reg_tokens rel_pos_dim rel_pos_type reparam replace_stem_pool repmixer_kernel_size res_scale_init_values
    rope_grid_indexing rope_grid_offset rope_jitter_coords rope_mixed_mode rope_mrope_section
    rope_rescale_coords rope_rotate_half rope_shift_coords rope_temperature rope_theta rope_type scale
    scale_attn_inner scale_attn_norm scale_mlp scale_mlp_norm se_downsamples se_from_exp se_layer se_ratio
    sep_pos_embed sequential_attn serial_depths shared_rel_pos shortcut_root small small_kernels spatial_conv
    sr_ratios ssd_expand stages standardize state_dim stem_bias stem_chs stem_expand_ratio stem_hidden_dim
    stem_kernel_size stem_mid_norm stem_norm stem_size stem_stride stem_type stem_use_scale_branch stem_width
    strict_img_size stride strides swiglu_align_to swiglu_mlp token_mixers tokens_norm transformer_depths
    transformer_drop_path transition_compression_ratio types union use_abs_pos use_abs_pos_emb use_aux_head
    use_clipped_linears use_conv use_expand_proj use_fc_norm use_grn use_lab use_layer_scale use_mix_token
    use_mlp_head use_msfa use_naflex use_overlap_down use_pos_emb use_pos_embed use_post_norm
    use_post_norm_in_modulation use_post_transformer_norm use_pre_transformer_norm use_rel_pos use_rel_pos_bias
    use_rope use_rot_pos_emb use_shared_rel_pos_bias v2 version vit_stem weight_init widen_factor width
    width_factor width_list width_mult widths window_ratio window_size window_sizes window_spec with_fc wss
    zero_init_last
"""
ALLOWED = frozenset(_NAMES.split())
"""Every number, flag and name of a layer that the constructors of timm 1.0.31's classification models take. A fixed list:
the same whatever timm is installed, and known before PyTorch is imported."""

_DECIDED = re.compile(
    r"pretrained(_.+)?|checkpoint_path|cache_dir|features_only|feature_.+|out_indices|scriptable|exportable|no_jit|pruned"
    r"|num_classes|device|dtype|model_cfg"
)
"""What `timm.create_model` and the function behind it take beside the constructor's arguments."""
_LONGEST, _LARGEST = 100, 65_536
"""Characters of a text, and magnitude of a number."""
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)?")


def argument_problem(name: str, value: object) -> str | None:
    """Why an argument of a model cannot be given, or None if it can."""
    if name not in ALLOWED:
        if _DECIDED.fullmatch(name):
            return "unic-pipe decides this itself; only arguments that shape the architecture can be given"
        near = did_you_mean(name, sorted(ALLOWED))
        return "not an argument that shapes an architecture" + (near if near.startswith(";") else "")
    if not isinstance(value, bool | int | float | str):
        return "expected a number, a text, true or false"
    if isinstance(value, str) and (len(value) > _LONGEST or not value.isprintable()):
        return f"expected a printable text of at most {_LONGEST} characters"
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:
        return f"must be at most {_LARGEST:,}"
    return None


def architecture_problem(name: object) -> str | None:
    """Why a name cannot be that of a timm architecture, or None: one with a colon or a slash is searched in a hub."""
    if not isinstance(name, str) or _ARCHITECTURE.fullmatch(name):
        return None
    return f"{name!r} is not the name of a timm architecture"


def argument_problems(arguments: object) -> Iterator[tuple[str, str]]:
    """The arguments that cannot be given, each with the reason. Arguments may be anything that was read from a file."""
    if isinstance(arguments, Mapping):
        for name, value in arguments.items():
            problem = argument_problem(str(name), value)
            if problem is not None:
                yield str(name), problem


def require_arguments(architecture: str, arguments: object, where: str = "model_args") -> None:
    """Check what is about to reach a constructor of timm; `where` it stands begins the message.

    Raises:
        UserError: an argument that cannot be given, or an architecture that would be looked for in a hub or a folder.
    """
    if (problem := architecture_problem(architecture)) is not None:
        raise UserError(
            f"{problem}.",
            "python -c 'import timm; print(timm.list_models())' lists them. For a folder: encoder: checkpoint:FOLDER",
        )
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: expected `key: value` fields, found {type(arguments).__name__}.")
    problems = [f"{where}.{name}: {problem}" for name, problem in argument_problems(arguments)]
    if problems:
        raise UserError("; ".join(problems[:5]) + ".", "Take it out. Weights are named by `weights:` or `encoder:`.")
