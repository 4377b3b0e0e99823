"""Image models: data that packages ship, training, sampling, and what is measured on samples."""

from dforce.images.classifier import Classifier, load_classifier, save_classifier, train_classifier
from dforce.images.metrics import accuracy, diversity, features, frechet
from dforce.images.model import ImageModel, class_cond, draw, guided_by_class, load_model, pixels

__all__ = ["Classifier", "ImageModel", "accuracy", "class_cond", "diversity", "draw", "features", "frechet",
           "guided_by_class", "load_classifier", "load_model", "pixels", "save_classifier", "train_classifier"]
