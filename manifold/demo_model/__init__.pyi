from .gallery import Gallery as Gallery
from .gallery import load_gallery as load_gallery
from .pipeline import ClassConditionalPipeline as ClassConditionalPipeline
from .weights import CLASS_NAMES as CLASS_NAMES
from .weights import MODEL_FOLDER as MODEL_FOLDER
from .weights import load_demo_model as load_demo_model
