"""What a fine-tune forgets: old tasks scored while a new one is learned, in the user's own Trainer.

`ForgettingMonitor` is the callback for Lightning (`callback.py`), `ForgettingMonitorCallback` its twin for Hugging
Face's Trainer (`huggingface.py`). Both drive a `Watch` (`watch.py`), which knows neither.
"""
