"""The stages that make the bundled pipeline and its hypernetworks; `hnloader.demo.train` runs them."""
