"""Comparison with golden tensors computed by the published model (what `lingbot-parity` runs).

Golden files are safetensors that the published LingBot-World code has computed at tiny sizes, with
random weights, in float32 and attention in float64. They do not come with the package and it cannot
make them: what it computes itself would prove nothing. Whoever has the published code makes one of

- a causal file: metadata `dim`, `ffn_dim`, `num_heads`, `num_layers`, `text_dim`, `text_len`,
  `freq_dim`, `in_channels`, `out_channels`, `patch_size` ("1,2,2"), `control_type`, `num_chunks`,
  `frames_per_chunk`, `latent_height`, `latent_width`, `local_attn_size`, `sink_size`, `flow_shift`
  and `timestep_indices` ("[0, 179, 358, 679]"); the weights as `model.NAME` under their published
  names; what goes in: `noise` [C, F, H, W], `condition` [mask and image latent, F, H, W], `control`
  [1, channels, F, H, W], `text` [tokens, width] and `renoise` [chunk, pass, C, f, H, W]; what came
  out: `flow` [chunk, pass, C, f, H, W], `x0` [C, F, H, W], `context_flow` [chunk, C, f, H, W],
  `cache_k_last` and `cache_v_last` [1, tokens, heads, width], `timesteps`, `x0_sigmas` and
  `renoise_sigmas` [pass];
- a camera file: `EXAMPLE.poses`, `EXAMPLE.intrinsics` in, `EXAMPLE.latent_poses`,
  `EXAMPLE.relative_poses`, `EXAMPLE.plucker_packed` out; `sigmas.shiftS`, `timesteps.shiftS`; and
  `action.NAME`, the poses of the action string that the metadata have under that name.
"""
