"""The block path: source -> stream -> (repository or sink), and back."""
