"""What the representation and the predictor are good for."""
