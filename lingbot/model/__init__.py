"""The causal transformer and its caches: plain modules, no Lightning, no Hydra, no processes."""

from lingbot.model.cached_transformer import CachedTransformer
from lingbot.model.camera_conditioner import ConditionerCache
from lingbot.model.exchange import Exchange, LocalExchange
from lingbot.model.kv_cache import KVCache, KVCacheConfig
from lingbot.model.kv_format import KVFormat
from lingbot.model.kv_store import KVStore
from lingbot.model.rope import Grid
from lingbot.model.teacher_forcing import TeacherForcing
from lingbot.model.transformer import CausalLingBotTransformer, TransformerConfig

__all__ = [
    "CachedTransformer",
    "CausalLingBotTransformer",
    "ConditionerCache",
    "Exchange",
    "Grid",
    "KVCache",
    "KVCacheConfig",
    "KVFormat",
    "KVStore",
    "LocalExchange",
    "TeacherForcing",
    "TransformerConfig",
]
