"""What a trained model is judged by and how that is shown: inference, metrics, reports."""
