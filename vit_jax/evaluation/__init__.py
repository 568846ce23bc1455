"""Evaluation of trained models: accuracy, few-shot, probes, predictions and features."""
