"""Image models: data that packages ship, training, sampling, and what is measured on samples."""

from dforce.core.frechet import frechet
from dforce.images.classifier import Classifier, load_classifier, save_classifier, train_classifier
from dforce.images.judge import accuracy, diversity, features
from dforce.images.model import ImageModel, class_cond, draw, guided_by_class, load_model, pixels
