"""What must hold in whatever order and process the tests run."""

# It reads HF_HUB_OFFLINE once, when it is imported: never within a test that has set it.
import huggingface_hub.constants  # noqa: F401
