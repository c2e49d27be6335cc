//! Builds the parts of the agent, starts and stops them in order.
