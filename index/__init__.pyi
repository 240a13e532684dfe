from .encode import encode_images as encode_images
from .encoders import open_encoder as open_encoder
from .fit import fit_workspace as fit_workspace
from .verify import Verification as Verification
from .verify import verify_workspace as verify_workspace
from .workspace import Workspace as Workspace
