from .embed import embed_workspace as embed_workspace
from .model import ClipModel as ClipModel
from .model import open_clip_model as open_clip_model
from .search import ClipSearcher as ClipSearcher
from .store import ClipSpec as ClipSpec
from .store import ClipStore as ClipStore
from .trajectory import TrajectoryOverlap as TrajectoryOverlap
from .trajectory import trajectory_overlap as trajectory_overlap
