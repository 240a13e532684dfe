from .opening import DEFAULT_SIZES as DEFAULT_SIZES
from .opening import open_encoder as open_encoder
from .opening import reopen as reopen
from .pixels import PixelEncoder as PixelEncoder
from .spec import Encoder as Encoder
from .spec import EncoderSpec as EncoderSpec
from .spec import embedding_spec as embedding_spec
from .vae import VaeEncoder as VaeEncoder
