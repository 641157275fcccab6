"""A KVM in software: serves the KVM API in this process. Nothing here is imported while a real KVM serves."""
