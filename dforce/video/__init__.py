"""Video: rollouts of any length, what they are compared with, and how drift is measured."""
