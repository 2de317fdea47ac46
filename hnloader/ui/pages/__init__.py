"""The pages, one module each: components and what happens at their events."""
