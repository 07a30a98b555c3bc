/* Row 2: the first checkpoint of an epoch seals all that came before it.
 *
 * A taker publishes, finds its predecessor (the newest older epoch with a first checkpoint), reads
 * that one's checkpoint and log, writes its own first checkpoint, re-reads the epoch, and acts only
 * then. No older log is ever read again. Takers may stop anywhere and finish their checkpoint late.
 *
 * Promises, of the newest owner that acts:
 *   loss     it knows every message that was answered with 250
 *   return   a message that was refused, and that some owner that acted did not know, stays away;
 *            so does a message whose outcome was settled
 *
 * Wrong: ACT_FIRST  acts before its checkpoint is written
 *        READ_ALL   reads every older checkpoint and log again
 */
#define NODES 3
#define EPOCHS 4
#define MESSAGES 2

byte published = 0;
byte stored[EPOCHS + 1];                       /* the log of each epoch: MSG records ... */
byte done[EPOCHS + 1];                         /* ... and DONE records; replay is order-free */
bool sealed[EPOCHS + 1];                       /* is the first checkpoint there, whole? */
byte ckpt_live[EPOCHS + 1], ckpt_done[EPOCHS + 1];
bool acting[EPOCHS + 1];
byte live[EPOCHS + 1], dead[EPOCHS + 1];       /* the memory of each epoch's owner */
byte offered = 0, acked = 0, refused = 0, settled = 0;
byte forgotten = 0;                            /* refused, and unknown to an owner that acted */

inline check() {
  if
  :: published > 0 && acting[published] ->
     assert((acked & ~(live[published] | dead[published])) == 0);
     assert((live[published] & (forgotten | settled)) == 0);
     forgotten = forgotten | (refused & ~(live[published] | dead[published]))
  :: else
  fi
}

inline write_checkpoint() {
  d_step { ckpt_live[mine] = l; ckpt_done[mine] = d; sealed[mine] = true }
}

inline act() {
  atomic {
    if
    :: published == mine -> live[mine] = l; dead[mine] = d; acting[mine] = true; check()
    :: else -> mine = 0
    fi;
    l = 0; d = 0
  }
}

proctype node() {
  byte mine = 0, older = 0, one = 0, l = 0, d = 0;
  do
  :: atomic { mine == 0 && published < EPOCHS -> published++; mine = published };
#ifdef READ_ALL
     older = mine - 1;
     do
     :: older > 0 ->
        d_step {
          if
          :: sealed[older] -> l = l | ckpt_live[older]; d = d | ckpt_done[older]
          :: else
          fi;
          l = l | stored[older]; d = d | done[older]; older--
        }
     :: older == 0 -> break
     od;
     l = l & ~d;
#else
     d_step {
       older = mine - 1;
       do
       :: older > 0 && !sealed[older] -> older--
       :: else -> break
       od;
       skip
     };
     d_step { /* epoch 0 is the empty spool */
       l = (ckpt_live[older] | stored[older]) & ~(ckpt_done[older] | done[older]);
       d = ckpt_done[older] | done[older];
       older = 0
     };
#endif
#ifdef ACT_FIRST
     d_step { ckpt_live[mine] = l; ckpt_done[mine] = d };  /* its text; not yet on the spool */
     act();
     if
     :: mine > 0 -> sealed[mine] = true
     :: mine == 0
     fi
#else
     write_checkpoint();
     act()
#endif

  :: atomic { mine > 0 && offered < MESSAGES -> one = 1 << offered; offered++ };
     stored[mine] = stored[mine] | one;
     atomic {
       if
       :: published == mine -> acked = acked | one; live[mine] = live[mine] | one
       :: else -> refused = refused | one; mine = 0
       fi;
       one = 0; check()
     }

  :: atomic {
       mine > 0 && live[mine] != 0 ->
       if
       :: live[mine] & 1 -> one = 1
       :: live[mine] & 2 -> one = 2
       fi
     };
     done[mine] = done[mine] | one;
     atomic {
       if
       :: published == mine ->
          settled = settled | one; live[mine] = live[mine] & ~one; dead[mine] = dead[mine] | one
       :: else -> mine = 0
       fi;
       one = 0; check()
     }

  :: mine > 0 -> mine = 0  /* a crash */

  :: mine == 0 && published == EPOCHS -> break
  od
}

init {
  atomic {
    byte i = 0;
    do
    :: i < NODES -> run node(); i++
    :: else -> break
    od
  }
}
