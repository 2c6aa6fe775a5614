"""The formats on both sides of the gateway: OpenAI's towards clients, Triton's towards engines. Pure."""
